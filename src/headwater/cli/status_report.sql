-- name: processes
-- Who is alive, with what it has and tells. A worker that has not told anything yet is there all the same.
select coalesce(p.name, w.name) as name, coalesce(p.started_at, w.started_at) as started_at,
       coalesce(p.serves, false) as serves, w.worker_id is not null as works,
       (select count(*) from headwater.projections o where o.owner = w.worker_id and o.state in ('live', 'building'))
         as units,
       coalesce(p.report, '{}') as report
  from (select * from headwater.processes where seen_until > now()) p
  full join (select * from headwater.workers where lease_until > now()) w on w.worker_id = p.process_id
 order by name, started_at

-- name: appended
-- Events that were appended in the last seconds. Times never fall with the position: the first of them is found by halving,
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
