-- name: start_over
-- Take a projection back to before the log. Its worker loses the lease, so that the next one begins with the reset.
with asked as (
  update headwater.projections set rewind_to = 0, fence = fence + 1, owner = null where name = $1 and state = 'live'
)
select h.position, pg_notify('headwater', 'leases:' || (extract(epoch from clock_timestamp()) * 1000)::bigint)
  from headwater.head h
