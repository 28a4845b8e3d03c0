-- name: positions
-- Where the log and each live projection stand.
select 'log' as name, position from headwater.head
 union all
select name, position from headwater.projections where live
