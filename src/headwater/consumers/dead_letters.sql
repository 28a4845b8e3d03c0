-- name: parked
-- The keys that are set aside, or parked, of one generation of a projection.
select distinct key from headwater.dead_letters where projection = $1 and generation = $2

-- name: due
-- Keys that are to be tried again, the first due first, with the seconds until then. A key's first letter alone says when:
-- those behind it may be due as well, while it waits for a person.
select d.key, extract(epoch from d.next_attempt_at - now())::float8 as wait
  from headwater.dead_letters d
 where d.projection = $1 and d.generation = $2 and d.next_attempt_at is not null
   and not exists (
         select from headwater.dead_letters b
          where b.projection = d.projection and b.generation = d.generation and b.key = d.key
            and b.position < d.position offset 0)
 order by d.next_attempt_at
 limit $3

-- name: letters
-- What waits for some keys, in the log's order: an equal share of so many for each, found by the primary key. Where the queue
-- is long, looking at all of it for each batch would cost more than folding it.
select waiting.*
  from unnest($3::uuid[]) as u(key)
 cross join lateral (
   select l.key, l.position, l.attempts, l.discarded
     from headwater.dead_letters l
    where l.projection = $1 and l.generation = $2 and l.key = u.key
    order by l.position
    limit greatest(1, $4 / cardinality($3))
 ) waiting
 order by waiting.position
 limit $4

-- name: park
-- Letters set aside, or tried in vain once more: the pause is null where a person has to act, or another letter is first.
insert into headwater.dead_letters
  (projection, generation, key, position, attempts, error, traceback_hash, next_attempt_at)
select $1, $2, u.key, u.position, u.attempts, u.error, u.traceback_hash, now() + u.pause * interval '1 second'
  from unnest($3::uuid[], $4::bigint[], $5::int[], $6::text[], $7::text[], $8::float8[])
    as u(key, position, attempts, error, traceback_hash, pause)
on conflict (projection, generation, key, position) do update
   set attempts = excluded.attempts, error = excluded.error, traceback_hash = excluded.traceback_hash,
       -- Discarded while it was tried: that is what counts.
       next_attempt_at = case when dead_letters.discarded then now() else excluded.next_attempt_at end

-- name: remove
-- Letters that are folded, or discarded.
delete from headwater.dead_letters d
 using unnest($3::uuid[], $4::bigint[]) as u(key, position)
 where d.projection = $1 and d.generation = $2 and d.key = u.key and d.position = u.position

-- name: go_on
-- More waited for these keys than was taken at once: the rest is due now.
update headwater.dead_letters d
   set next_attempt_at = now()
  from unnest($3::uuid[]) as u(key)
 cross join lateral (
   select l.position from headwater.dead_letters l
    where l.projection = $1 and l.generation = $2 and l.key = u.key
    order by l.position
    limit 1
 ) first
 where d.projection = $1 and d.generation = $2 and d.key = u.key and d.position = first.position
returning d.key

-- name: list
-- Letters with their events: all, or ($4) the first of each key only, which the others wait behind.
select d.projection, d.generation, d.key, d.position, e.type, d.attempts, d.parked_at, d.next_attempt_at, d.error,
       d.traceback_hash, e.data, e.recorded_at, e.stream_id,
       (select count(*) from headwater.dead_letters b
         where b.projection = d.projection and b.generation = d.generation and b.key = d.key
           and b.position > d.position and not b.discarded) as waiting
  from headwater.dead_letters d
  join headwater.events e on e.position = d.position
  join headwater.projections p on p.name = d.projection and p.generation = d.generation and p.state <> 'retired'
 where not d.discarded
   and ($1::text is null or d.projection = $1)
   and ($2::uuid is null or d.key = $2)
   and ($3::bigint is null or d.position = $3)
   and not ($4 and exists (
         select from headwater.dead_letters b
          where b.projection = d.projection and b.generation = d.generation and b.key = d.key
            and b.position < d.position and not b.discarded))
 order by d.projection, d.generation, d.key, d.position
 limit $5

-- name: retry
-- The first letters of keys are due now; the worker that leases the projection tries them.
with first as (
  select distinct on (l.projection, l.generation, l.key) l.projection, l.generation, l.key, l.position
    from headwater.dead_letters l
    join headwater.projections p on p.name = l.projection and p.generation = l.generation and p.state <> 'retired'
   where not l.discarded and ($1::text is null or l.projection = $1) and ($2::uuid is null or l.key = $2)
   order by l.projection, l.generation, l.key, l.position
)
update headwater.dead_letters d
   set next_attempt_at = now()
  from first f
 where d.projection = f.projection and d.generation = f.generation and d.key = f.key and d.position = f.position
   and ($3::bigint is null or d.position = $3)
returning d.projection, d.key, d.position

-- name: discard
-- The first letter of each key is to be passed over, if it failed, or ($4) all that wait now; the rest is due. A key whose
-- first letter is discarded already is the worker's: the one behind it has not failed, and may never.
with first as (
  select distinct on (l.projection, l.generation, l.key)
         l.projection, l.generation, l.key, l.position, l.error is not null and not l.discarded as failed
    from headwater.dead_letters l
    join headwater.projections p on p.name = l.projection and p.generation = l.generation and p.state <> 'retired'
   where ($1::text is null or l.projection = $1) and ($2::uuid is null or l.key = $2)
   order by l.projection, l.generation, l.key, l.position
)
update headwater.dead_letters d
   set discarded = true, next_attempt_at = now()
  from first f
 where d.projection = f.projection and d.generation = f.generation and d.key = f.key
   and (d.position = f.position and f.failed or $4)
   and ($3::bigint is null or f.position = $3)
   and not d.discarded
returning d.projection, d.key, d.position

-- name: ring
-- Everyone look: a person has acted.
select pg_notify('headwater', '')
