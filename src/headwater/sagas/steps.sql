-- name: to_resume
-- The instances with a current step, in the order of their ids: a worker drives them when it has leased the saga.
select stream_id from headwater.sagas
 where saga = $1 and status in ('running', 'undoing') and step is not null and stream_id > $2
 order by stream_id
 limit $3
