-- name: reach
-- PostgreSQL answers.
select 1

-- name: read
-- The log can be read: its end, and the event there.
select h.position
  from headwater.head h
  left join lateral (select e.event_id from headwater.events e where e.position = h.position limit 1) last on true

-- name: write
-- Whether an append could be written now. $1: the epoch that the process knows.
select free, position from headwater.probe_append($1)
