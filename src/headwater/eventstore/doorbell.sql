-- name: positions
-- Where the log and each live projection stand, and which generation is live.
select 'log' as name, position from headwater.head
 union all
select name, position from headwater.projections where state = 'live'
 union all
select name || ' generation', generation from headwater.projections where state = 'live'
