-- name: standings
-- Every generation of every projection that is kept: how far it has come, how far it is behind, and who keeps it, all of
-- one moment. One row without a name where there is none.
select h.position as head, p.name, p.generation, p.state, p.position, p.differences, p.failure, p.hindrance,
       -- After a restore a checkpoint may be beyond the log's end, until the log has caught up.
       greatest(h.position - p.position, 0) as lag_events,
       -- Since when the first event after the checkpoint waits. Times of the log never fall: after the clock was set back, as
       -- by a failover, they stand still in its future. Until it is there, by how long the checkpoint has not moved; that
       -- counts what the log was idle as well, for the moment that such an event takes.
       coalesce(greatest(extract(epoch from clock_timestamp() - case
         when next.recorded_at > clock_timestamp() then p.updated_at else next.recorded_at end), 0), 0)::float8
         as lag_seconds,
       (select w.name from headwater.workers w where w.worker_id = p.owner and w.lease_until > now()) as worker,
       -- Of a key's letters the first has failed, or is due; those behind it are not looked at.
       (select count(distinct d.key) from headwater.dead_letters d
         where d.projection = p.name and d.generation = p.generation
           and (d.error is not null or d.next_attempt_at is not null)) as parked_keys
  from headwater.head h
  left join headwater.projections p
    on p.state in ('live', 'building') and p.name <> 'schedules'  -- which has no place in the log
  left join lateral (
    select e.recorded_at from headwater.events e where e.position = p.position + 1 limit 1
  ) next on true
 order by p.name, p.generation

-- name: recorded
-- When the events at some positions were recorded.
select position, recorded_at from headwater.events where position = any($1::bigint[])
