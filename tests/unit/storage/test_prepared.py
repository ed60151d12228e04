"""Statements past SQLAlchemy do what the same statements do through it, on both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    select,
    update,
)

from ironworks.model.errors import Aborted, InvalidRequest, NotFound
from ironworks.storage.prepared import Prepared, inserting
from ironworks.storage.sql import Database

PETS = Table(
    "pets",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("name", String(8), nullable=False),
    Column("owner", String(8)),
    Column("age", Integer, nullable=False),
)
ADD = Prepared(inserting(PETS))
ADD_NUMBERED = Prepared(inserting(PETS, "id"))
GROW = Prepared(update(PETS).where(PETS.c.name == bindparam("who")).values(age=PETS.c.age + 1))
NAMED = Prepared(
    select(PETS).where(PETS.c.name.in_(["Rex", bindparam("who", type_=String)])).order_by(PETS.c.id)
)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    made = Database(database_url)
    PETS.metadata.create_all(made.engine)
    yield made
    made.close()


async def add(database: Database, *names: str) -> None:
    for number, name in enumerate(names):
        pet = {"id": number, "name": name, "owner": None, "age": number}
        await database.write(lambda c, pet=pet: ADD.run(c, **pet))


async def test_rows_have_the_names_and_values_that_sqlalchemy_gives_them(
    database: Database,
) -> None:
    await add(database, "Rex", "Bello", "Minka")
    found = await database.read(lambda c: NAMED.rows(c, who="Minka"))
    assert [(one.id, one.name, one.owner, one.age) for one in found] == [
        (0, "Rex", None, 0),
        (2, "Minka", None, 2),
    ]
    through = await database.read(lambda c: c.execute(PETS.select().where(PETS.c.id == 2)).all())
    assert tuple(found[1]) == tuple(through[0])
    assert await database.read(lambda c: NAMED.rows(c, who="'; --")) == found[:1]


async def test_a_change_says_how_many_rows_it_met(database: Database) -> None:
    await add(database, "Rex", "Rex", "Bello")
    assert await database.write(lambda c: GROW.run(c, who="Rex")) == 2
    assert await database.write(lambda c: GROW.run(c, who="Nobody")) == 0
    found = await database.read(lambda c: NAMED.rows(c, who="Bello"))
    assert [one.age for one in found] == [1, 2, 2]


async def test_a_column_that_the_database_fills_is_left_to_it(database: Database) -> None:
    for _ in range(2):
        await database.write(lambda c: ADD_NUMBERED.run(c, name="Rex", owner="me", age=1))
    assert len({one.id for one in await database.read(lambda c: NAMED.rows(c, who=""))}) == 2


async def test_what_is_undone_takes_these_statements_with_it(database: Database) -> None:
    def half(connection: Connection) -> None:
        ADD.run(connection, id=9, name="Rex", owner=None, age=0)
        raise NotFound("No such pet.")

    with pytest.raises(NotFound):
        await database.write(half)
    assert await database.read(lambda c: NAMED.rows(c, who="")) == []


async def test_what_the_database_refuses_means_what_it_means_through_sqlalchemy(
    database: Database,
) -> None:
    await add(database, "Rex")
    with pytest.raises(Aborted):
        await add(database, "Rex")
    if database.engine.dialect.name == "postgresql":  # SQLite stores any text
        with pytest.raises(InvalidRequest):
            await database.write(lambda c: ADD.run(c, id=5, name="x" * 9, owner=None, age=0))
