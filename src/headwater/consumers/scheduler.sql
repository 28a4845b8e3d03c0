-- name: stored
-- The schedules that the database knows, of these names.
select name, begun_at, fired_at from headwater.schedules where name = any($1::text[])

-- name: failing
-- The schedules whose last moment failed, with the first line of the error. A moment that was accepted or refused has one word
-- as its outcome.
select name, fired_at, split_part(outcome, E'\n', 1) as failure
  from headwater.schedules
 where outcome ~ '^\w+: '
 order by name

-- name: register
-- Add schedules that the database does not know; they begin now. Others are unchanged, so that any worker may run this.
insert into headwater.schedules (name, begun_at)
select name, $2::timestamptz from unnest($1::text[]) as u(name)
on conflict (name) do nothing

-- name: store
-- Store the outcome of a due moment. A stored moment never goes back. No row: another worker has stored this moment or a
-- later one.
update headwater.schedules set fired_at = $2, outcome = $3, finished_at = $4
 where name = $1 and (fired_at is null or fired_at < $2)
returning name
