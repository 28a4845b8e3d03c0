-- name: lock
-- One at a time makes or changes a projection's tables.
select pg_advisory_xact_lock(hashtextextended('headwater projection ' || $1, 0))

-- name: standing
-- The live generation of a projection.
select generation, table_name, position, fence, fingerprint
  from headwater.projections
 where name = $1 and state = 'live'

-- name: declared
-- The generations that were made from a declaration. One that has passed to newer code is as good as retired.
select case when fingerprint = $2 then state else 'retired' end as state, generation, failure
  from headwater.projections
 where name = $1 and (fingerprint = $2 or $2 = any(earlier))

-- name: live_declaration
-- What the live generation was declared as, and the enum values that its rows may hold.
select fingerprint, enums from headwater.projections where name = $1 and state = 'live'

-- name: give_up_earlier
-- What is being built from the declarations that the live generation has had so far.
update headwater.projections b set state = 'retired', retired_at = now(), owner = null
  from headwater.projections l
 where b.name = $1 and b.state = 'building' and l.name = $1 and l.state = 'live'
   and b.fingerprint = any(array_append(l.earlier, l.fingerprint))
returning b.generation

-- name: adopt
-- The live generation is this declaration's from now on, with its rows, and nobody's yet. It is handed over as in
-- follower.sql: what changes here, changes there.
update headwater.projections
   set earlier = array_append(array_remove(earlier, fingerprint), fingerprint), fingerprint = $2, enums = $3,
       fence = fence + 1, owner = null
 where name = $1 and state = 'live'

-- name: building
-- The generation that is being built from a declaration.
select generation, table_name, position, fence, fingerprint
  from headwater.projections
 where name = $1 and fingerprint = $2 and state = 'building'

-- name: give_up
-- What is being built from other declarations.
update headwater.projections set state = 'retired', retired_at = now(), owner = null
 where name = $1 and fingerprint <> $2 and state = 'building'

-- name: give_up_failed
-- A build of a declaration that has failed. What it has written is of a fold with a mistake in it, even when that is mended.
update headwater.projections set state = 'retired', retired_at = now(), owner = null
 where name = $1 and fingerprint = $2 and state = 'building' and failure is not null

-- name: next_generation
-- A number that no generation had.
select coalesce(max(generation), 0) + 1 from headwater.projections where name = $1

-- name: register
-- A new generation, from the beginning of the log.
insert into headwater.projections (name, generation, version, fingerprint, table_name, state, enums)
values ($1, $2, $3, $4, $5, $6, $7)

-- name: has_key
-- Whether a table has its primary key.
select exists (select from pg_constraint where conrelid = $1::text::regclass and contype = 'p')

-- name: columns
-- What a table or view has: name and type of each column, in order; nothing when it is not there.
select attname::text, format_type(atttypid, atttypmod)
  from pg_attribute
 where attrelid = to_regclass($1) and attnum > 0 and not attisdropped
 order by attnum

-- name: ring
-- Workers: there is something to lease.
select pg_notify('headwater', 'leases:' || (extract(epoch from clock_timestamp()) * 1000)::bigint)
