-- name: positions
-- The positions of the log and of each live projection, and the number of each live generation.
select 'log' as name, position from headwater.head
 union all
select name, position from headwater.projections where state = 'live'
 union all
select name || ' generation', generation from headwater.projections where state = 'live'
