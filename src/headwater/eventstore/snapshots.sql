-- name: load
-- The snapshot of a stream. of_this_stream: the stream still has the event that it was taken after. After a partial
-- restore the stream may have ended earlier, or continued with other events.
select s.version, s.shape, s.seal, s.state, e.position, e.category, e.event_id = s.event_id as of_this_stream
  from headwater.snapshots s
  left join headwater.events e on e.stream_id = s.stream_id and e.version = s.version
 where s.stream_id = $1 and s.fold_version = $2

-- name: store
-- Store the states of many streams, each with the event that it was taken after. The greater version wins, in any order of
-- writing; a row of another shape is replaced, and rows of older folds are deleted. LIMIT 1 keeps the plan to index
-- look-ups, however long the log is.
with given as (
  select u.stream_id, u.fold_version, u.version, u.shape, u.seal, u.state, e.event_id
    from unnest($1::uuid[], $2::integer[], $3::integer[], $4::bigint[], $5::text[], $6::text[], $7::text[])
      as u(stream_id, fold_version, version, position, shape, seal, state)
   cross join lateral (
     select e.event_id, e.position from headwater.events e
      where e.stream_id = u.stream_id and e.version = u.version limit 1
   ) e
   where e.position = u.position and ($8::integer is null or $8 = (select epoch from headwater.head))
), outdated as (
  delete from headwater.snapshots s using given g where s.stream_id = g.stream_id and s.fold_version < g.fold_version
)
insert into headwater.snapshots as s (stream_id, fold_version, version, event_id, shape, seal, state)
select stream_id, fold_version, version, event_id, shape, seal, state::json from given
    on conflict (stream_id, fold_version) do update
   set version = excluded.version, event_id = excluded.event_id, shape = excluded.shape, seal = excluded.seal,
       state = excluded.state, taken_at = now()
 where excluded.version > s.version or excluded.shape <> s.shape

-- name: discard
-- Delete a snapshot that cannot be used, unless another one has replaced it.
delete from headwater.snapshots where stream_id = $1 and fold_version = $2 and version = $3 and seal = $4
