-- name: unsettled
-- What is still to be done with the log as it is: units of these names that are behind it, steps of sagas that are under way,
-- and timers that are due at $1. A key that is parked waits for a retry or an operator: nothing of it is under way.
select p.name as what, p.name as unit, p.position
  from headwater.projections p, headwater.head h
 where p.state in ('live', 'building') and p.name = any($2::text[]) and p.position < h.position
union all
select s.step || ' of the saga ' || s.saga, 'log', h.position
  from headwater.sagas s, headwater.head h
 where s.status in ('running', 'undoing') and s.step is not null
   and not exists (select from headwater.dead_letters d where d.projection = 'saga ' || s.saga and d.key = s.key::text)
union all
select 'the timer ' || t.message || ' of the saga ' || t.saga, 'log', h.position
  from headwater.timers t join headwater.sagas s using (stream_id), headwater.head h
 where t.due_at <= $1
   and not exists (select from headwater.dead_letters d where d.projection = 'saga ' || s.saga and d.key = s.key::text)
