-- name: old
-- Live generations that have tombstones older than $1 seconds.
select name, generation
  from headwater.projections p
 where state = 'live'
   and exists (select from headwater.tombstones t
                where t.projection = p.name and t.generation = p.generation
                  and t.removed_at < now() - $1 * interval '1 second')

-- name: prune
-- Delete at most $4 tombstones, the oldest positions first, and return their number. The generation's row is locked first, as
-- its worker does it, so that the two cannot deadlock. `forgotten` moves in the same commit.
with held as materialized (
  select name, generation from headwater.projections where name = $1 and generation = $2 and state = 'live' for update
), upto as materialized (
  select max(position) as position
    from (select t.position
            from held
            join headwater.tombstones t on t.projection = held.name and t.generation = held.generation
           where t.removed_at < now() - $3 * interval '1 second'
           order by t.position
           limit $4) oldest
), pruned as (
  delete from headwater.tombstones t
   where t.projection = $1 and t.generation = $2 and t.position <= (select position from upto)
     and t.removed_at < now() - $3 * interval '1 second'
  returning t.key
), moved as (
  update headwater.projections p
     set forgotten = greatest(p.forgotten, upto.position)
    from held, upto
   where p.name = held.name and p.generation = held.generation and upto.position is not null
)
select count(*) from pruned
