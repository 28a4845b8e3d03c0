-- name: heartbeat
-- Renew the lease of a worker, and with it that of all units it owns. The first heartbeat registers the worker.
insert into headwater.workers (worker_id, name, runs, lease_until)
values ($1, $2, $3, now() + $4 * interval '1 second')
on conflict (worker_id) do update set lease_until = excluded.lease_until

-- name: forget_workers
-- Remove workers that ended long ago without removing themselves.
delete from headwater.workers where lease_until < now() - interval '1 hour'

-- name: workers
-- The live workers, with the units that the code of each can run.
select worker_id, runs from headwater.workers where lease_until > now() order by worker_id

-- name: units
-- All units that a worker should run.
select name, generation, table_name, position, fence, fingerprint, state = 'building' as building, owner
  from headwater.projections
 where state in ('live', 'building')
 order by name, generation

-- name: end_stalled_sessions
-- Terminate the sessions that lock the row of a unit whose owner's lease has expired, if the client has sent nothing for $1
-- seconds. Such a worker may have been stopped within a statement, whose messages arrive one by one: no timeout of PostgreSQL
-- applies there. The sessions are found first and terminated then: as a condition among others, the function might be called
-- before the others are checked, for every session.
with stalled as materialized (
  select p.name, a.pid
    from headwater.projections p
    join pg_stat_activity a on a.backend_xid = p.xmax
   where p.state in ('live', 'building')
     and p.owner is not null
     and not exists (select from headwater.workers w where w.worker_id = p.owner and w.lease_until > now())
     and a.usename = current_user
     and a.wait_event_type = 'Client'
     and a.state_change < clock_timestamp() - $1 * interval '1 second'
)
select name, pid, pg_terminate_backend(pid, $2) from stalled

-- name: claim
-- Claim free units. The fencing token rises, so that the former owner can commit nothing more. A row that another worker is
-- claiming, or that a stopped worker has locked, is left for the next round.
with free as (
  select p.name, p.generation
    from headwater.projections p
    join unnest($2::text[], $3::int[], $4::bigint[]) as u(name, generation, fence) using (name, generation)
   where p.fence = u.fence and p.state in ('live', 'building')
     and (p.owner is null or p.owner = $1
          or not exists (select from headwater.workers w where w.worker_id = p.owner and w.lease_until > now()))
     for update of p skip locked
)
update headwater.projections p
   set owner = $1, fence = p.fence + 1
  from free
 where p.name = free.name and p.generation = free.generation
returning p.name, p.generation, p.table_name, p.position, p.fence, p.fingerprint, p.state = 'building' as building, p.owner

-- name: release
-- Release units, and ring for the other workers.
with released as (
  update headwater.projections p set owner = null
    from unnest($2::text[], $3::int[]) as u(name, generation)
   where p.name = u.name and p.generation = u.generation and p.owner = $1
  returning p.name
)
select pg_notify('headwater', 'leases:' || (extract(epoch from clock_timestamp()) * 1000)::bigint)
 where exists (select from released)

-- name: leave
-- Remove a worker, release all of its units, and ring for the other workers.
with released as (
  update headwater.projections set owner = null where owner = $1
), removed as (
  delete from headwater.workers where worker_id = $1
)
select pg_notify('headwater', 'leases:' || (extract(epoch from clock_timestamp()) * 1000)::bigint)
