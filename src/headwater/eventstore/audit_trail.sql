-- name: page
-- The log between two exclusive positions; of a category, of types, of an actor, or of all (null).
select {columns}
  from headwater.events
 where position > $1 and position < $2
   and ($3::text is null or category = $3) and ($4::text[] is null or type = any($4))
   and ($5::text is null or actor = $5)
 order by position {direction}
 limit $6

-- name: page_of_stream
-- The same for the stream $7. The exclusive versions $8 and $9 are what the index finds; of a correlation, or of all (null).
select {columns}
  from headwater.events
 where position > $1 and position < $2
   and ($3::text is null or category = $3) and ($4::text[] is null or type = any($4))
   and ($5::text is null or actor = $5)
   and stream_id = $7 and version > $8 and version < $9 and ($10::uuid is null or correlation_id = $10)
 order by version {direction}
 limit $6

-- name: page_of_correlation
-- The same for the correlation $7: the events of the commands that its first command caused, and those of the first command
-- itself. Each arm has an index.
select * from (
  (select {columns}
     from headwater.events
    where position > $1 and position < $2
      and ($3::text is null or category = $3) and ($4::text[] is null or type = any($4))
      and ($5::text is null or actor = $5)
      and correlation_id = $7 and correlation_id <> command_id
    order by correlation_id, position {direction}
    limit $6)
   union all
  (select {columns}
     from headwater.events
    where position > $1 and position < $2
      and ($3::text is null or category = $3) and ($4::text[] is null or type = any($4))
      and ($5::text is null or actor = $5)
      and command_id = $7 and correlation_id = $7
    order by ordinal {direction}
    limit $6)
) both_arms
 order by position {direction}
 limit $6

-- name: version_at
-- The version that the stream $1 had at the position $2: a binary search over its versions, which are contiguous from 1.
with recursive search(low, high) as (
  select 0, coalesce((select version from headwater.events where stream_id = $1 order by version desc limit 1), 0)
   union all
  select case when e.position <= $2 then s.middle else s.low end, case when e.position <= $2 then s.high else s.middle - 1 end
    from (select low, high, (low + high + 1) / 2 as middle from search where low < high) s
   cross join lateral (
     select position from headwater.events where stream_id = $1 and version = s.middle limit 1
   ) e
)
select low from search where low = high
