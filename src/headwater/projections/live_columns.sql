-- name: columns
-- The number of the live generation, and of each of its columns the name, the type, and true if it may be null.
select p.generation, a.attname::text as name, format_type(a.atttypid, a.atttypmod) as type, not a.attnotnull as nullable
  from headwater.projections p
  join pg_attribute a on a.attrelid = to_regclass(format('read.%I', p.table_name)) and a.attnum > 0
   and not a.attisdropped
 where p.name = $1 and p.state = 'live'
