-- name: built
-- The progress of a generation, the end of the log, and the number of running workers whose code can build it.
select p.state, p.position, h.position as head, p.failure, p.hindrance,
       (select count(*) from headwater.workers w
         where w.lease_until > now() and p.name || ' ' || p.fingerprint = any(w.runs)) as workers
  from headwater.projections p, headwater.head h
 where p.name = $1 and p.generation = $2

-- name: started_over
-- The progress of a unit without generations that begins again. $2: the position to reach. No row: the unit is unknown.
select case when p.rewind_to is not null then 0 else p.position end as position, p.failure,
       p.rewind_to is null and p.position >= $2 as done,
       (select count(*) from headwater.workers w
         where w.lease_until > now() and p.name || ' ' || p.fingerprint = any(w.runs)) as workers
  from headwater.projections p
 where p.name = $1 and p.state = 'live'

-- name: forget_hindrance
-- Clears what the swap has waited for; the next failed swap records it again.
update headwater.projections set hindrance = null
 where name = $1 and generation = $2 and state = 'building' and hindrance is not null

-- name: was_live
-- True if a generation was ever live.
select live_since is not null from headwater.projections where name = $1 and generation = $2
