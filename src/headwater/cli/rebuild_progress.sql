-- name: built
-- A generation, where the log ends, and how many workers live whose code can build it.
select p.state, p.position, h.position as head, p.failure, p.hindrance,
       (select count(*) from headwater.workers w
         where w.lease_until > now() and p.name || ' ' || p.fingerprint = any(w.runs)) as workers
  from headwater.projections p, headwater.head h
 where p.name = $1 and p.generation = $2

-- name: forget_hindrance
-- What its swap has waited for is not known any more: the next one in vain says it again.
update headwater.projections set hindrance = null
 where name = $1 and generation = $2 and state = 'building' and hindrance is not null

-- name: was_live
-- Whether a generation was ever live.
select live_since is not null from headwater.projections where name = $1 and generation = $2
