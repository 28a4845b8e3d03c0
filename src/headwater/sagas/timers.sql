-- name: due
-- The timers of a saga that are due at $2, the earliest first, after the place ($3, $4) in this order.
select stream_id, message, due_at from headwater.timers
 where saga = $1 and due_at <= $2 and (due_at, stream_id) > ($3, $4)
 order by due_at, stream_id
 limit $5

-- name: next_due
-- The time of the next timer that is not due yet.
select min(due_at) from headwater.timers where saga = $1 and due_at > $2
