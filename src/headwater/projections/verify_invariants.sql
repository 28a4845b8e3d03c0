-- name: checked
-- Record the result of checking an invariant, for monitoring.
insert into headwater.invariants (name, position, violations)
values ($1, $2, $3)
    on conflict (name) do update
   set position = excluded.position, violations = excluded.violations, checked_at = excluded.checked_at

-- name: results
-- The last result of each invariant.
select name, position, violations, checked_at from headwater.invariants order by name

-- name: forget_others
-- Remove the results of invariants that are not declared.
delete from headwater.invariants where name <> all($1::text[])
