-- name: mine
-- Lock the row of the lease, so that a worker that takes the lease waits for the end of this transaction. No other session waits.
select from headwater.projections where name = $1 and generation = $2 and fence = $3 and state = 'building' for key share

-- name: begin_again
-- Move the checkpoint to the start of the log, under the same lease, and delete the dead letters. No row: the lease is lost.
with begun as (
  update headwater.projections set position = 0, rewind_to = null, updated_at = now()
   where name = $1 and generation = $2 and fence = $3 and state = 'building'
  returning name, generation
), letters as (
  delete from headwater.dead_letters d using begun b where d.projection = b.name and d.generation = b.generation
)
select generation from begun
