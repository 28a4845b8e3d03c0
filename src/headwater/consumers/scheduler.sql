-- name: look
-- How far each schedule has come. No row: the lease is another's; one without a name: none of them is known yet.
select s.name, s.begun_at, s.fired_at
  from headwater.projections p
  left join headwater.schedules s on s.name = any($3::text[])
 where p.name = 'schedules' and p.generation = $1 and p.fence = $2 and p.state = 'live'

-- name: begin
-- Schedules that the database has not seen before begin now; the others stay as they are, so anyone may say it.
insert into headwater.schedules (name, begun_at)
select name, $2::timestamptz from unnest($1::text[]) as u(name)
on conflict (name) do nothing

-- name: move
-- A due moment is dealt with. Under the lease, held to the end of the transaction, and never back. No row: the lease is
-- another's, or someone has come so far already.
with held as (
  select from headwater.projections
   where name = 'schedules' and generation = $1 and fence = $2 and state = 'live' for share
)
update headwater.schedules s set fired_at = $4, outcome = $5, finished_at = $6
  from held
 where s.name = $3 and (s.fired_at is null or s.fired_at < $4)
returning s.name
