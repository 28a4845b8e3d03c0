-- name: checkpoint
-- Up to which position a read model is complete.
select position from headwater.projections where name = $1 and live

-- name: changes
-- What changed after a position, the removed keys and the checkpoint, all of one moment. {table} is the read model's view.
-- One row with nulls when only the checkpoint has moved.
select p.position as complete_to,
       (select coalesce(json_agg(json_build_array(t.key, t.position)), '[]')
          from headwater.tombstones t
         where t.projection = p.name and t.generation = p.generation and t.position > $2)::text as removed,
       changed.*
  from headwater.projections p
  left join {table} changed on changed.position > $2
 where p.name = $1 and p.live
 order by changed.position
 limit $3

-- name: row
-- A row and the checkpoint, of one moment; nulls when there is no row.
select p.position as complete_to, found.*
  from headwater.projections p
  left join {table} found on found.{key} = $2
 where p.name = $1 and p.live

-- name: rows
-- The rows of some keys.
select * from {table} where {key} = any($1::uuid[])
