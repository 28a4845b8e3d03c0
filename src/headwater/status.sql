-- name: workers
-- Who is alive, with what it has.
select w.name, w.started_at,
       (select count(*) from headwater.projections p where p.owner = w.worker_id and p.state in ('live', 'building'))
         as units
  from headwater.workers w
 where w.lease_until > now()
 order by w.name
