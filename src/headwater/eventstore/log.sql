-- name: append
-- Many commands in one call, and a verdict for each. See the function's comment.
select verdicts, versions, positions, streams, blockers
  from headwater.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)

-- name: append_plain
-- A batch of one-event commands as a whole: the position before it, or null when anyone in it loses.
select headwater.append_plain($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)

-- name: head
-- Where the log ends.
select position from headwater.head

-- name: read_stream
-- A stream's events after a version, in their order.
select position, stream_id, version, schema_version, event_id, command_id, correlation_id, causation_id, recorded_at,
       category, type, actor, data
  from headwater.events
 where stream_id = $1 and version > $2
 order by version
 limit $3

-- name: read_streams
-- The events of some streams up to a position, one stream after another. Each is looked up by itself, and nothing can be
-- looked up by `position + 0`: the plan is one for few events of a long log, whatever PostgreSQL knows of its streams.
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
-- The log after a position, in its order; of some categories and types, or of all (null).
select position, stream_id, version, schema_version, event_id, command_id, correlation_id, causation_id, recorded_at,
       category, type, actor, data
  from headwater.events
 where position > $1 and position <= $2
   and ($3::text[] is null or category = any($3))
   and ($4::text[] is null or type = any($4))
 order by position
 limit $5

-- name: read_on
-- What comes next in the log, up to a position, and where the log ends, as one row without a stream, both of one moment.
(select position, stream_id, version, schema_version, event_id, command_id, correlation_id, causation_id, recorded_at,
        category, type, actor, data
   from headwater.events
  where position > $1 and position <= $2 and type = any($3)
  order by position
  limit $4)
 union all
select position, null, null, null, null, null, null, null, null, null, null, null, null from headwater.head

-- name: at
-- The events at some positions.
select position, stream_id, version, schema_version, event_id, command_id, correlation_id, causation_id, recorded_at,
       category, type, actor, data
  from headwater.events
 where position = any($1::bigint[])
 order by position

-- name: result_of
-- What an accepted command came to; no row for one that was not accepted.
select stream_id, version, position from headwater.events where command_id = $1
 union all
select stream_id, version, position from headwater.commands where command_id = $1
 order by position desc
 limit 1

-- name: name_of
-- What the command of an id is called, as far as that is known; no row for one that never was accepted.
(select command as name from headwater.events where command_id = $1 order by ordinal limit 1)
 union all
select name from headwater.commands where command_id = $1
 limit 1

-- name: origin_of
-- On whose behalf a command was carried out, and what led to it; no row for one that left no event, or never was accepted.
select actor, causation_id from headwater.events where command_id = $1 order by ordinal limit 1

-- name: position_at
-- The last position recorded at $1 or before it; only before it when $2. No row when positions have a gap. About as many
-- look-ups in the primary key as the last position has binary digits: an index on the time would burden every append.
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
