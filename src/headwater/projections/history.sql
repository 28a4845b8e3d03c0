-- name: standing
-- What clients read: the table of its rows, up to where it is complete, and whether this code's declaration is or was its own.
select table_name, position, fingerprint = $2 or $2 = any(earlier) as ours
  from headwater.projections
 where name = $1 and state = 'live'
