-- name: enter
-- All epochs, the current one last. Begins one first if the log may have lost its end. $1: the tag of the epoch that the
-- process knows; $2, $3: positions of it, and the commands that were accepted there; $4: they are all that it knows. Nothing
-- is returned if the first command is gone and there may be more.
select epoch, tag, position from headwater.enter_epoch($1, $2, $3, $4)

-- name: epochs
-- All epochs, the current one last.
select epoch, tag, position from headwater.epochs order by epoch

-- name: keep_lost
-- Keep what the process knew of positions that the log has lost. Two processes may know the same one.
insert into headwater.lost (tag, position, stream_id, version, command_id, type, known_by)
select u.tag, u.position, u.stream_id, u.version, u.command_id, u.type, $7
  from unnest($1::text[], $2::bigint[], $3::uuid[], $4::integer[], $5::uuid[], $6::text[])
    as u(tag, position, stream_id, version, command_id, type)
    on conflict (tag, position) do update
   set stream_id = excluded.stream_id, version = excluded.version, command_id = excluded.command_id,
       type = excluded.type, known_by = excluded.known_by
 where lost.stream_id is null and excluded.stream_id is not null
