-- name: lock
-- One process at a time creates, swaps or drops the tables of a projection.
select pg_advisory_xact_lock(hashtextextended('headwater projection ' || $1, 0))

-- name: live
-- The live generation of a projection.
select generation, table_name, position, fence, fingerprint
  from headwater.projections
 where name = $1 and state = 'live'

-- name: declared
-- The generations made from a declaration. A generation that newer code has adopted counts as retired for the older one.
select case when fingerprint = $2 then state else 'retired' end as state, generation, failure
  from headwater.projections
 where name = $1 and (fingerprint = $2 or $2 = any(earlier))

-- name: live_declaration
-- The declaration of the live generation, and the enum values that its rows may hold.
select fingerprint, enums from headwater.projections where name = $1 and state = 'live'

-- name: give_up_earlier
-- Retire the builds of declarations that the live generation had before.
update headwater.projections b set state = 'retired', retired_at = now(), owner = null
  from headwater.projections l
 where b.name = $1 and b.state = 'building' and l.name = $1 and l.state = 'live'
   and b.fingerprint = any(array_append(l.earlier, l.fingerprint))
returning b.generation

-- name: adopt
-- The live generation, with its rows, belongs to this declaration from now on, and has no owner yet. Consumers are handed
-- over in the same way: a change here is a change there.
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
-- Retire the builds of other declarations.
update headwater.projections set state = 'retired', retired_at = now(), owner = null
 where name = $1 and fingerprint <> $2 and state = 'building'

-- name: give_up_failed
-- Retire a failed build of this declaration. Its rows come from a faulty fold, even if the fold is mended since.
update headwater.projections set state = 'retired', retired_at = now(), owner = null
 where name = $1 and fingerprint = $2 and state = 'building' and failure is not null

-- name: next_generation
-- The first unused generation number.
select coalesce(max(generation), 0) + 1 from headwater.projections where name = $1

-- name: register
-- A new generation, from the start of the log.
insert into headwater.projections (name, generation, version, fingerprint, table_name, state, enums)
values ($1, $2, $3, $4, $5, $6, $7)

-- name: ring
-- Tell workers that there is something to lease.
select pg_notify('headwater', 'leases:' || (extract(epoch from clock_timestamp()) * 1000)::bigint)
