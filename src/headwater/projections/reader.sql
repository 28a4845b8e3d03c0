-- name: checkpoint
-- The position up to which a read model is complete, with its live generation and edition.
select position, generation, edition from headwater.projections where name = $1 and state = 'live'

-- name: changes
-- The rows that changed after a position, the removed keys, and the checkpoint, all of one moment. {table} is the SQL view of
-- the read model. The result is one row with nulls when only the checkpoint has moved. Only the first row has the removed
-- keys: repeated in each row, they would cost far more than the rows. Names with a space never clash with a column.
select p.position as "complete to", p.generation as "live generation",
       p.edition as "live edition", p.live_since as "live since", p.forgotten > $2 as "is forgotten",
       -- A position that this read model has not reached yet may still be in the log: another process knew it first.
       case when p.position < $2 then $2 > (select position from headwater.head) else false end as "is beyond",
       case when row_number() over (order by changed.position) = 1 then
         (select coalesce(json_agg(json_build_array(t.key, t.position)), '[]')
            from headwater.tombstones t
           where t.projection = p.name and t.generation = p.generation and t.position > $2)::text
       end as "removed keys",
       changed.*
  from headwater.projections p
  -- LATERAL ... LIMIT makes PostgreSQL use the index on the position, however many rows follow.
  left join lateral (select {columns} from {table} where position > $2 order by position limit $3) changed on true
 where p.name = $1 and p.state = 'live'
 order by changed.position

-- name: row
-- A row and the checkpoint, of one moment. The parameters from $2 on are the parts of the key. The row's columns are null when there is no row.
select p.position as "complete to", p.generation as "live generation", p.edition as "live edition", found.*
  from headwater.projections p
  left join (select {columns} from {table} where {is key}) found on true
 where p.name = $1 and p.state = 'live'

-- name: rows
-- The rows of some keys, given as one array a column.
select {columns} from {table} where {among keys}

-- name: parked
-- Those of some keys whose events wait as dead letters: their rows are older than the position of the read model says.
select distinct d.key
  from headwater.projections p
  join headwater.dead_letters d on d.projection = p.name and d.generation = p.generation and d.key = any($2::text[])
 where p.name = $1 and p.state = 'live'
