-- name: without_timeout
-- Counting a long log for the first time takes longer than a client's query may.
set local statement_timeout = 0

-- name: counted
-- How far the log has been counted, and how far it goes; whoever has the row's lock counts on.
select c.position, h.position as head from headwater.counted c, headwater.head h for update of c

-- name: forget
-- Begin again: the log is shorter than what was counted of it.
delete from headwater.kinds

-- name: count
-- The kinds of events after a position, to another at most, added to those counted before.
insert into headwater.kinds as k (category, type, schema_version, count, first_position, last_position)
select category, type, schema_version, count(*), min(position), max(position)
  from headwater.events
 where position > $1 and position <= $2
 group by category, type, schema_version
    on conflict (category, type, schema_version) do update
   set count = k.count + excluded.count, last_position = excluded.last_position

-- name: move
-- Remember how far that was.
update headwater.counted set position = $1

-- name: kinds
-- All kinds, with the first and the last event of each. LIMIT 1 holds the plan to index look-ups.
select k.category, k.type, k.schema_version, k.count, k.first_position, k.last_position,
       first.data as first_data, last.data as last_data
  from headwater.kinds k
 cross join lateral (select data from headwater.events where position = k.first_position limit 1) first
 cross join lateral (select data from headwater.events where position = k.last_position limit 1) last
 order by k.first_position
