-- name: due
-- Messages whose moment has come, the first one first; those after ($3, $4) in the same order.
select stream_id, message, due_at from headwater.timers
 where saga = $1 and due_at <= $2 and (due_at, stream_id) > ($3, $4)
 order by due_at, stream_id
 limit $5

-- name: next_due
-- When the next message falls due.
select min(due_at) from headwater.timers where saga = $1 and due_at > $2
