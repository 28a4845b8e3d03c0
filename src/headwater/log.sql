-- name: append
-- Many commands in one call, and a verdict for each. See the function's comment.
select verdicts, versions, positions, streams, blockers
  from headwater.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)

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

-- name: result_of
-- What an accepted command came to; no row for one that was not accepted.
select stream_id, version, position from headwater.events where command_id = $1
 union all
select stream_id, version, position from headwater.commands where command_id = $1
 order by position desc
 limit 1
