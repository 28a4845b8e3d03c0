-- name: to_resume
-- Instances that wait for a command of theirs to be accepted: they are taken up again when the saga is.
select stream_id from headwater.sagas
 where saga = $1 and status in ('running', 'undoing') and step is not null and stream_id > $2
 order by stream_id
 limit $3
