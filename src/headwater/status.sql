-- name: projections
-- Each generation that is kept, how far it has come, and by whom it is kept.
select p.name, p.generation, p.state, p.position, greatest(h.position - p.position, 0) as lag,
       -- Since when the first event after the checkpoint waits.
       (select coalesce(greatest(extract(epoch from clock_timestamp() - e.recorded_at), 0), 0)::float8
          from (select) one left join headwater.events e on e.position = p.position + 1) as lag_seconds,
       (select w.name from headwater.workers w where w.worker_id = p.owner and w.lease_until > now()) as worker,
       (select count(distinct d.key) from headwater.dead_letters d
         where d.projection = p.name and d.generation = p.generation) as parked_keys
  from headwater.projections p
 cross join headwater.head h
 where p.state in ('live', 'building') and p.name <> 'schedules'  -- which has no place in the log
 order by p.name, p.generation

-- name: workers
-- Who is alive, with what it has.
select w.name, w.started_at,
       (select count(*) from headwater.projections p where p.owner = w.worker_id and p.state in ('live', 'building'))
         as units
  from headwater.workers w
 where w.lease_until > now()
 order by w.name

-- name: head
-- Where the log ends.
select position from headwater.head
