-- name: live
-- The live generation: its table and checkpoint, and true if it has, or had, this declaration.
select table_name, position, fingerprint = $2 or $2 = any(earlier) as ours
  from headwater.projections
 where name = $1 and state = 'live'
