-- name: parked
-- The keys of one generation of a unit that have letters.
select distinct key from headwater.dead_letters where projection = $1 and generation = $2

-- name: due
-- The keys that will be retried, in the order of their times, with the seconds until then. Only a key's first letter counts:
-- later ones may be due while the first waits for an operator.
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
-- The letters of some keys in the order of the log: an equal share of the limit for each key, found by the primary key. Reading
-- the whole of a long queue for each batch would cost more than folding it.
select waiting.*
  from unnest($3::text[]) as u(key)
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
-- Store letters, or a further failure of them. The pause is null if an operator has to act, or if another letter is first.
insert into headwater.dead_letters
  (projection, generation, key, position, attempts, error, traceback_hash, next_attempt_at)
select $1, $2, u.key, u.position, u.attempts, u.error, u.traceback_hash, now() + u.pause * interval '1 second'
  from unnest($3::text[], $4::bigint[], $5::int[], $6::text[], $7::text[], $8::float8[])
    as u(key, position, attempts, error, traceback_hash, pause)
on conflict (projection, generation, key, position) do update
   set attempts = excluded.attempts, error = excluded.error, traceback_hash = excluded.traceback_hash,
       -- An operator discarded it during the attempt: that takes precedence.
       next_attempt_at = case when dead_letters.discarded then now() else excluded.next_attempt_at end

-- name: remove
-- Remove letters that were handled or discarded.
delete from headwater.dead_letters d
 using unnest($3::text[], $4::bigint[]) as u(key, position)
 where d.projection = $1 and d.generation = $2 and d.key = u.key and d.position = u.position

-- name: forget_after
-- Delete the letters of events after a position: the log does not have them.
delete from headwater.dead_letters where projection = $1 and generation = $2 and position > $3

-- name: go_on
-- These keys have more letters than one batch took: make the first of the rest due.
update headwater.dead_letters d
   set next_attempt_at = now()
  from unnest($3::text[]) as u(key)
 cross join lateral (
   select l.position from headwater.dead_letters l
    where l.projection = $1 and l.generation = $2 and l.key = u.key
    order by l.position
    limit 1
 ) first
 where d.projection = $1 and d.generation = $2 and d.key = u.key and d.position = first.position
returning d.key

-- name: list
-- Letters with their events: all, or ($4) only the first of each key, behind which the others wait.
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
   and ($2::text is null or d.key = $2)
   and ($3::bigint is null or d.position = $3)
   and not ($4 and exists (
         select from headwater.dead_letters b
          where b.projection = d.projection and b.generation = d.generation and b.key = d.key
            and b.position < d.position and not b.discarded))
 order by d.projection, d.generation, d.key, d.position
 limit $5

-- name: retry
-- Make the first letters of keys due. The worker that has the lease of the unit retries them.
with first as (
  select distinct on (l.projection, l.generation, l.key) l.projection, l.generation, l.key, l.position
    from headwater.dead_letters l
    join headwater.projections p on p.name = l.projection and p.generation = l.generation and p.state <> 'retired'
   where not l.discarded and ($1::text is null or l.projection = $1) and ($2::text is null or l.key = $2)
   order by l.projection, l.generation, l.key, l.position
)
update headwater.dead_letters d
   set next_attempt_at = now()
  from first f
 where d.projection = f.projection and d.generation = f.generation and d.key = f.key and d.position = f.position
   and ($3::bigint is null or d.position = $3)
returning d.projection, d.key, d.position

-- name: discard
-- Discard the first letter of each key if it failed, or ($4) all letters of the key, and make the rest due. If the first letter is
-- already discarded, the key is left to the worker: the next letter has not failed, and perhaps never will.
with first as (
  select distinct on (l.projection, l.generation, l.key)
         l.projection, l.generation, l.key, l.position, l.error is not null and not l.discarded as failed
    from headwater.dead_letters l
    join headwater.projections p on p.name = l.projection and p.generation = l.generation and p.state <> 'retired'
   where ($1::text is null or l.projection = $1) and ($2::text is null or l.key = $2)
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
-- Wake every worker, since an operator has acted.
select pg_notify('headwater', '')
