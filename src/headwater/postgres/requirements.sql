-- name: backend
-- The server process that runs this statement.
select pg_backend_pid()

-- name: missing_on_tables
-- The rights that the role lacks on tables and SQL views, of those that exist. $1, $2, $3: schema, name and privilege of each.
select quote_ident(current_user) as role, w.privilege, format('%I.%I', w.schema, w.name) as object
  from unnest($1::text[], $2::text[], $3::text[]) with ordinality as w(schema, name, privilege, place)
  join pg_namespace n on n.nspname = w.schema
  join pg_class c on c.relnamespace = n.oid and c.relname = w.name
 where not has_table_privilege(c.oid, w.privilege)
 order by w.place

-- name: missing_on_schemas
-- The rights that the role lacks on schemas that exist. $1, $2: name and privilege of each.
select quote_ident(current_user) as role, w.privilege, format('schema %I', w.schema) as object
  from unnest($1::text[], $2::text[]) with ordinality as w(schema, privilege, place)
  join pg_namespace n on n.nspname = w.schema
 where not has_schema_privilege(n.oid, w.privilege)
 order by w.place

-- name: missing_on_functions
-- The functions of the log that the role may not call. PostgreSQL checks no right when it runs a trigger.
select quote_ident(current_user) as role, 'execute' as privilege, format('function %s', p.oid::regprocedure) as object
  from pg_proc p
 where p.pronamespace = (select oid from pg_namespace where nspname = 'headwater') and p.prorettype <> 'trigger'::regtype
   and not has_function_privilege(p.oid, 'execute')
 order by p.proname

-- name: not_owned
-- The tables and SQL views of read models whose owner the role is not, nor a member of it: only the owner replaces them.
select quote_ident(current_user) as role, quote_ident(pg_get_userbyid(c.relowner)) as owner, format('%I.%I', n.nspname, c.relname) as object
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where n.nspname in ('read', 'routed') and c.relkind in ('r', 'v') and not pg_has_role(c.relowner, 'usage')
 order by c.relname

-- name: schemas_to_create
-- The schemas that do not exist, if the role may not create them. $1: their names.
select quote_ident(current_user) as role, current_database() as database, w.name
  from unnest($1::text[]) with ordinality as w(name, place)
 where not exists (select from pg_namespace n where n.nspname = w.name)
       and not has_database_privilege(current_database(), 'create')
 order by w.place
