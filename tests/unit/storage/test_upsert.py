from __future__ import annotations

from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine
from sqlalchemy.dialects import postgresql

from ironworks.storage.upsert import upsert

PETS = Table("pets", MetaData(), Column("id", Integer, primary_key=True), Column("name", String))


def test_sqlite_replaces_what_is_there() -> None:
    engine = create_engine("sqlite://")
    PETS.metadata.create_all(engine)
    with engine.begin() as connection:
        for name in ("Rex", "Bello"):
            new = upsert(connection, PETS).values(id=1, name=name)
            connection.execute(
                new.on_conflict_do_update(index_elements=["id"], set_={"name": name})
            )
        assert connection.execute(PETS.select()).all() == [(1, "Bello")]
    engine.dispose()


def test_postgresql_writes_it_the_same_way() -> None:
    engine = create_engine("postgresql+psycopg://nobody@nowhere/none")

    class Connected:
        dialect = engine.dialect

    new = upsert(Connected(), PETS).values(id=1, name="Rex")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    text = str(new.on_conflict_do_nothing().compile(dialect=postgresql.dialect()))
    assert "ON CONFLICT DO NOTHING" in text
