-- An instance whose first event fails has no stream yet. Operators must see it all the same, and say what is to be.
alter table headwater.sagas
  drop constraint sagas_version_check,
  add constraint sagas_version_check check (version >= 0);
comment on column headwater.sagas.version is
  'Of its stream. 0: it has not begun, since its first event is set aside; then position is that of the event.';
