-- name: look
-- How far each of these schedules has come, those that the database knows.
select name, begun_at, fired_at from headwater.schedules where name = any($1::text[])

-- name: begin
-- Schedules that the database has not seen before begin now; the others stay as they are, so anyone may say it.
insert into headwater.schedules (name, begun_at)
select name, $2::timestamptz from unnest($1::text[]) as u(name)
on conflict (name) do nothing

-- name: move
-- Write the outcome of a due moment. No row: another worker has written this moment or a later one.
update headwater.schedules set fired_at = $2, outcome = $3, finished_at = $4
 where name = $1 and (fired_at is null or fired_at < $2)
returning name
