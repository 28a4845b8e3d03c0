-- name: processes
-- The running processes, with their units and reports. A worker that has not reported yet is among them.
select coalesce(p.name, w.name) as name, coalesce(p.started_at, w.started_at) as started_at,
       coalesce(p.serves, false) as serves, w.worker_id is not null as works,
       (select count(*) from headwater.projections o where o.owner = w.worker_id and o.state in ('live', 'building'))
         as units,
       coalesce(p.report, '{}') as report
  from (select * from headwater.processes where seen_until > now()) p
  full join (select * from headwater.workers where lease_until > now()) w on w.worker_id = p.process_id
 order by name, started_at

-- name: appended
-- The number of events of the last $1 seconds. Times never fall as positions grow, so binary search finds the first of them,
-- as in log.sql.
with recursive search(low, high) as (
  select 0::bigint, position from headwater.head
   union all
  select case when e.before then s.middle else s.low end, case when e.before then s.high else s.middle - 1 end
    from (select low, high, (low + high + 1) / 2 as middle from search where low < high) s
   cross join lateral (
     select recorded_at < clock_timestamp() - $1 * interval '1 second' as before
       from headwater.events where position = s.middle limit 1
   ) e
)
select h.position - s.low from search s cross join headwater.head h where s.low = s.high
