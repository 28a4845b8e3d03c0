-- name: beat
-- The one heartbeat of a process: its lease, and so that of all it owns, lasts from now. It registers the process, too.
insert into headwater.workers (worker_id, name, runs, lease_until)
values ($1, $2, $3, now() + $4 * interval '1 second')
on conflict (worker_id) do update set lease_until = excluded.lease_until

-- name: forget
-- Workers that ended without saying so, long ago.
delete from headwater.workers where lease_until < now() - interval '1 hour'

-- name: workers
-- Who is alive, and what his code can keep.
select worker_id, runs from headwater.workers where lease_until > now() order by worker_id

-- name: units
-- Everything that is to be kept by someone.
select name, generation, table_name, position, fence, fingerprint, state = 'building' as building, owner
  from headwater.projections
 where state in ('live', 'building')
 order by name, generation

-- name: cut_off
-- Whoever holds the row of a unit whose owner's lease is over, and whom its own client has left waiting for so long. It has
-- been stopped, maybe within a statement, whose parts come one after another: no timeout of PostgreSQL's counts there. Found
-- first and ended then: as one of the conditions it might be asked before the others, of everybody.
with silent as materialized (
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
select name, pid, pg_terminate_backend(pid, $2) from silent

-- name: take
-- Lease what is free, and only that: whoever had it before can commit nothing any more, since the fence rises. A row that
-- another is taking, or that a stopped worker has locked, is left for the next look.
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

-- name: give
-- Give units back, and tell the others.
with given as (
  update headwater.projections p set owner = null
    from unnest($2::text[], $3::int[]) as u(name, generation)
   where p.name = u.name and p.generation = u.generation and p.owner = $1
  returning p.name
)
select pg_notify('headwater', 'leases:' || (extract(epoch from clock_timestamp()) * 1000)::bigint)
 where exists (select from given)

-- name: leave
-- A worker ends: everything that it owns is free, and the others are told.
with given as (
  update headwater.projections set owner = null where owner = $1
), left_ as (
  delete from headwater.workers where worker_id = $1
)
select pg_notify('headwater', 'leases:' || (extract(epoch from clock_timestamp()) * 1000)::bigint)
