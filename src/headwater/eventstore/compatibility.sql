-- name: without_timeout
-- The first count of a long log takes longer than the statement timeout of the pool. A process that is stopped meanwhile must
-- not block others, through a pooler neither.
set local statement_timeout = 0;
set local idle_in_transaction_session_timeout = '10s'

-- name: counted
-- The position up to which the log is counted, and its end. The lock lets one process count at a time.
select c.position, h.position as head from headwater.counted c, headwater.head h for update of c

-- name: forget
-- Start again: the log is shorter than its counted part, as after a restore.
delete from headwater.kinds

-- name: count
-- Count the kinds of events after a position up to another, and add them to the earlier counts.
insert into headwater.kinds as k (category, type, schema_version, count, first_position, last_position)
select category, type, schema_version, count(*), min(position), max(position)
  from headwater.events
 where position > $1 and position <= $2
 group by category, type, schema_version
    on conflict (category, type, schema_version) do update
   set count = k.count + excluded.count, last_position = excluded.last_position

-- name: move
-- Store the position up to which the log is counted.
update headwater.counted set position = $1

-- name: kinds
-- All kinds, with the first and the last event of each. LIMIT 1 keeps the plan to index look-ups.
select k.category, k.type, k.schema_version, k.count, k.first_position, k.last_position,
       first.data as first_data, last.data as last_data
  from headwater.kinds k
 cross join lateral (select data from headwater.events where position = k.first_position limit 1) first
 cross join lateral (select data from headwater.events where position = k.last_position limit 1) last
 order by k.first_position
