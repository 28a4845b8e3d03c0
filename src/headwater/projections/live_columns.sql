-- name: shape
-- The live generation, and the name, type and whether it may be null of each of its columns.
select p.generation, a.attname::text as name, format_type(a.atttypid, a.atttypmod) as type, not a.attnotnull as optional
  from headwater.projections p
  join pg_attribute a on a.attrelid = to_regclass(format('read.%I', p.table_name)) and a.attnum > 0
   and not a.attisdropped
 where p.name = $1 and p.state = 'live'
