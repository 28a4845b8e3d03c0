-- name: standings
-- Every generation that is live or being built: its checkpoint, its lag and its worker, all of one moment. One row without a
-- name when there is none.
select h.position as head, p.name, p.generation, p.state, p.position, p.differences, p.failure, p.hindrance,
       -- After a backup is restored, a checkpoint may be after the head until the log has caught up.
       greatest(h.position - p.position, 0) as lag_events,
       -- The age of the first event after the checkpoint. Times of the log never fall: after the clock was set back, as by a
       -- failover, new events carry a time in its future. Until the clock has reached it, the time since the checkpoint moved
       -- is used, which for a moment includes the time that the log was idle.
       coalesce(greatest(extract(epoch from clock_timestamp() - case
         when next.recorded_at > clock_timestamp() then p.updated_at else next.recorded_at end), 0), 0)::float8
         as lag_seconds,
       (select w.name from headwater.workers w where w.worker_id = p.owner and w.lease_until > now()) as worker,
       -- Only the first letter of a key has failed or is due; the letters behind it wait.
       (select count(distinct d.key) from headwater.dead_letters d
         where d.projection = p.name and d.generation = p.generation
           and (d.error is not null or d.next_attempt_at is not null)) as parked_keys,
       (select split_part(d.error, E'\n', 1) from headwater.dead_letters d
         where d.projection = p.name and d.generation = p.generation and d.error is not null
         order by d.position limit 1) as parked_failure
  from headwater.head h
  left join headwater.projections p
    on p.state in ('live', 'building') and p.name <> 'schedules'  -- schedules do not follow the log
  left join lateral (
    select e.recorded_at from headwater.events e where e.position = p.position + 1 limit 1
  ) next on true
 order by p.name, p.generation

-- name: recorded
-- The times at which the events at some positions were recorded.
select position, recorded_at from headwater.events where position = any($1::bigint[])
