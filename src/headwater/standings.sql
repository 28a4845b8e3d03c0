-- name: standings
-- Every generation of every projection that is kept: how far it has come and how far it is behind, of one moment.
select p.name, p.generation, p.state, p.position, p.differences, h.position as head, h.position - p.position as lag_events,
       -- Since when the first event after the checkpoint waits.
       coalesce(greatest(extract(epoch from clock_timestamp() - next.recorded_at), 0), 0)::float8 as lag_seconds,
       (select count(distinct d.key) from headwater.dead_letters d
         where d.projection = p.name and d.generation = p.generation) as parked_keys
  from headwater.head h
  left join headwater.projections p on p.state in ('live', 'building') and p.name <> 'schedules'
  left join lateral (
    select e.recorded_at from headwater.events e where e.position = p.position + 1 limit 1
  ) next on true
 order by p.name, p.generation

-- name: recorded
-- When the events at some positions were recorded.
select position, recorded_at from headwater.events where position = any($1::bigint[])
