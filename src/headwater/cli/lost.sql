-- name: epochs
-- The epochs of the log, the current one last.
select epoch, position, began_at, reason from headwater.epochs order by epoch

-- name: lost
-- What processes and clients knew of positions that the log lost.
select e.epoch, l.position, l.stream_id, l.version, l.type, l.command_id, l.known_by
  from headwater.lost l
  join headwater.epochs e on e.tag = l.tag
 order by e.epoch, l.position

-- name: begin
-- End the current epoch.
select headwater.begin_epoch((select epoch from headwater.head), $1)

-- name: current
-- The number of the current epoch.
select epoch from headwater.head
