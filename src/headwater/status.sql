-- name: workers
-- Who is alive, with what it has.
select w.name, w.started_at,
       (select count(*) from headwater.projections p where p.owner = w.worker_id and p.state in ('live', 'building'))
         as units,
       w.paces
  from headwater.workers w
 where w.lease_until > now()
 order by w.name

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
