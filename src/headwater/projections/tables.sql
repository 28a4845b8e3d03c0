-- name: has_key
-- True if the table has a primary key.
select exists (select from pg_constraint where conrelid = $1::text::regclass and contype = 'p')

-- name: columns
-- Name and type of each column of a table or SQL view, in order. No rows if it does not exist.
select attname::text as name, format_type(atttypid, atttypmod) as type
  from pg_attribute
 where attrelid = to_regclass($1) and attnum > 0 and not attisdropped
 order by attnum
