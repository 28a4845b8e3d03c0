-- name: append
-- Append many commands in one call, with a verdict for each. See the comment of the function.
select verdicts, versions, positions, streams, blockers
  from headwater.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
                        $21, $22, $23)

-- name: append_plain
-- Append a batch of one-event commands as a whole. The position before it; null if a command lost and nothing was written.
select headwater.append_plain($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)

-- name: head
-- The position of the last event.
select position from headwater.head

-- name: read_stream
-- A stream's events after a version, in order.
select position, stream_id, version, schema_version, event_id, command_id, correlation_id, causation_id, recorded_at,
       category, type, actor, data
  from headwater.events
 where stream_id = $1 and version > $2
 order by version
 limit $3

-- name: read_streams
-- The events of some streams up to a position, one stream after another. Each stream is an index look-up of its own:
-- `position + 0` matches no index, so the plan does not scan the primary key, whatever the statistics of the log are.
select e.*
  from unnest($1::uuid[]) as s(id)
 cross join lateral (
   select position, stream_id, version, schema_version, event_id, command_id, correlation_id, causation_id, recorded_at,
          category, type, actor, data
     from headwater.events
    where stream_id = s.id and position + 0 <= $2
    order by version
 ) e

-- name: read
-- The log after a position, in order; of some categories and types, or of all (null).
select position, stream_id, version, schema_version, event_id, command_id, correlation_id, causation_id, recorded_at,
       category, type, actor, data
  from headwater.events
 where position > $1 and position <= $2
   and ($3::text[] is null or category = any($3))
   and ($4::text[] is null or type = any($4))
 order by position
 limit $5

-- name: read_on
-- The next events after a position up to another, each with the end of the log. One statement, so that both are of one
-- snapshot. Without any event there is one row, with the end of the log only.
select e.*, h.position as head
  from headwater.head h
  left join lateral (
    select position, stream_id, version, schema_version, event_id, command_id, correlation_id, causation_id, recorded_at,
           category, type, actor, data
      from headwater.events
     where position > $1 and position <= $2 and type = any($3)
     order by position
     limit $4
  ) e on true
 order by e.position

-- name: at
-- The events at these positions.
select position, stream_id, version, schema_version, event_id, command_id, correlation_id, causation_id, recorded_at,
       category, type, actor, data
  from headwater.events
 where position = any($1::bigint[])
 order by position

-- name: result_of
-- The result of an accepted command; no row for one that was not accepted.
select stream_id, version, position from headwater.events where command_id = $1
 union all
select stream_id, version, position from headwater.commands where command_id = $1
 order by position desc
 limit 1

-- name: name_of
-- The name of an accepted command; null for a record of Headwater, no row for one that was not accepted.
(select command as name from headwater.events where command_id = $1 order by ordinal limit 1)
 union all
select name from headwater.commands where command_id = $1
 limit 1

-- name: origin_of
-- The actor and the cause of a command's events; no row for one that left no event or was not accepted.
select actor, causation_id from headwater.events where command_id = $1 order by ordinal limit 1

-- name: position_at
-- The last position recorded at or before $1; only before it if $2. No row if the positions have a gap. It takes about as
-- many look-ups in the primary key as the last position has binary digits; an index on the time would slow every append.
with recursive search(low, high) as (
  select 0::bigint, position from headwater.head
   union all
  select case when e.in_time then s.middle else s.low end, case when e.in_time then s.high else s.middle - 1 end
    from (select low, high, (low + high + 1) / 2 as middle from search where low < high) s
   cross join lateral (
     select recorded_at < $1 or (recorded_at = $1 and not $2) as in_time
       from headwater.events where position = s.middle limit 1
   ) e
)
select low from search where low = high
