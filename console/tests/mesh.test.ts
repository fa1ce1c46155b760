import { describe, expect, it } from 'vitest'
import type { PeerStatus } from '../src/api'
import { layout } from '../src/mesh/layout'
import { chatModels, modelsOf, explanation } from '../src/mesh/models'
import { changeText, isForeign, lastKnown, loadText, nodesOf, type MeshNode } from '../src/mesh/nodes'
import { demand, model, node, peer, serves, status } from './fixtures'

describe('isForeign', () => {
  it('is true for a node of another member only', () => {
    const nodes = nodesOf(status([peer('aa'), peer('bb', { owned: false })]), 1)
    const targets = ['engine', 'backend http://x', 'peer aa', 'peer bb', 'peer cc', 'peer', '']
    expect(targets.filter((target) => isForeign(target, nodes))).toEqual(['peer bb'])
  })
})

describe('nodesOf', () => {
  it('lists linked clients, steadily', () => {
    const known = status([peer('a')])
    const client = { id: 'cc', name: 'laptop', since_seconds: 10.4, rtt: 0.001 }
    const of = (since: number, wall: number, before: MeshNode[] = []): MeshNode[] =>
      nodesOf({ ...known, mesh: { ...known.mesh!, client_list: [{ ...client, since_seconds: since }] } }, wall, before)
    const first = of(10.4, 1000)
    expect(first.map((node) => [node.name, node.role])).toContainEqual(['laptop', 'client'])
    expect(first.at(-1)).toMatchObject({ status: 'alive', linked: true, models: [], rtt: 0.001, since: 990 })
    expect(of(15.9, 1005, first).at(-1)?.since).toBe(990)
  })

  it('lists this node, its peers and its backends', () => {
    const backends = [{ url: 'http://localhost:8000', healthy: true, models: ['x'], reason: '' }]
    const found = nodesOf(
      status([peer('a', { serves: [serves('m')] }), peer('b', { status: 'dead' })], { backends }),
      1000,
    )
    expect(found.map((one) => [one.name, one.role, one.status])).toEqual([
      ['here', 'standby', 'alive'],
      ['node a', 'host', 'alive'],
      ['node b', 'standby', 'dead'],
      ['localhost:8000', 'backend', 'alive'],
    ])
  })

  it('keeps the start of a status although latency changes the calculated time', () => {
    const first = nodesOf(status([peer('a', { since_seconds: 10.4 })]), 1000)
    const later = nodesOf(status([peer('a', { since_seconds: 15.9 })]), 1005, first)
    expect(later[1]?.since).toBe(first[1]?.since)
    const changed = nodesOf(status([peer('a', { since_seconds: 0, status: 'suspect' })]), 1010, later)
    expect(changed[1]?.since).toBe(1010)
  })

  it('takes the speed of a model from the load of the peer', () => {
    const load = [
      { target: 'a', active: 0, waiting: 0, slots: 4, kind: 'peer' as const, model: 'm', tokens_per_second: 33 },
    ]
    const [, there] = nodesOf(status([peer('a', { serves: [serves('m'), serves('n')] })], { load }), 1)
    expect(there?.models.map((one) => one.speed)).toEqual([33, null])
  })

  it('shows an unknown status as unverified', () => {
    const [here, there] = nodesOf(status([peer('a', { status: 'resting' as PeerStatus })]), 1)
    expect([here?.status, there?.status]).toEqual(['alive', 'unverified'])
  })
})

describe('what a node does next', () => {
  it('is known of nodes with a plan, and of none while this node does not answer', () => {
    const known = status([peer('a')])
    const plan = { node: 'a', name: 'node a', act: 'takes' as const, model: 'm', seconds: 3, text: 'takes m in 3 s' }
    const found = nodesOf({ ...known, mesh: { ...known.mesh!, plans: [plan] } }, 1)
    expect(found.map(changeText)).toEqual(['', 'takes m in 3 s'])
    expect(lastKnown(found).map((one) => one.next)).toEqual([null, null])
  })
})

describe('nodes that are not there', () => {
  it('serve nothing and work on nothing if they are dead or have left', () => {
    const busy = { serves: [serves('m')], active: 1, waiting: 2 }
    const found = nodesOf(status([peer('a', { ...busy, status: 'dead' }), peer('b', { ...busy, status: 'left' })]), 1)
    expect(found.slice(1).map((one) => [one.models, one.role, loadText(one)])).toEqual([
      [[], 'standby', ''],
      [[], 'standby', ''],
    ])
  })

  it('are marked as last known while this node does not answer', () => {
    const before = nodesOf(status([peer('a', { serves: [serves('m')] }), peer('b', { status: 'dead' })]), 1)
    expect(loadText(before[1]!)).toBe('1 of 4 slots busy')
    const after = lastKnown(before)
    expect(after.map((one) => [one.status, one.models.length, loadText(one)])).toEqual([
      ['suspect', 0, ''],
      ['unverified', 1, '0 of 4 slots busy'],
      ['dead', 0, ''],
    ])
  })
})

describe('modelsOf', () => {
  const of = (made: ReturnType<typeof status>): ReturnType<typeof modelsOf> => modelsOf(made, nodesOf(made, 1))

  it('lists each model once, served models first', () => {
    const peers = [
      peer('a', { serves: [serves('m')] }),
      peer('b', { serves: [serves('m')] }),
      peer('c', { on_disk: ['d', 'w'], wants: ['w', 'q'] }),
      peer('s', { serves: [serves('h')], status: 'suspect' }),
      peer('x', { serves: [serves('gone')], status: 'dead' }),
    ]
    const found = of(
      status(peers, {
        models: [model('f', 'fetching'), model('bad', 'failed', { reason: 'No room.', advice: 'Make some.' })],
      }),
    )
    expect(found.map((one) => [one.name, one.availability])).toEqual([
      ['m', 'serving'],
      ['f', 'starting'],
      ['bad', 'failed'],
      ['q', 'requested'],
      ['w', 'requested'],
      ['h', 'unconfirmed'],
      ['d', 'on disk'],
    ])
    const [m] = found
    expect([m?.slots, m?.active, m?.hosts.length, m?.context]).toEqual([8, 2, 2, 4096])
    expect(found.map(explanation)).toEqual([
      'Served by 2 nodes.',
      'Starting.',
      'No room. Make some.',
      'Requested by node c, but no known node has the file.',
      'Requested by node c. node c has the file and may serve it.',
      'Reported to be served by node s, which this node cannot reach.',
      'On the disk of node c, not loaded. To serve it, run there: mesh-llm load d',
    ])
  })

  it('explains a model that is not served as the daemon does', () => {
    const known = status([peer('c', { wants: ['w'], on_disk: ['d'] })])
    const outlook = 'It needs at least 4.7 GB.'
    const found = of({
      ...known,
      mesh: { ...known.mesh!, demand: [demand('w', { outlook }), demand('d', { outlook })] },
    })
    expect(found.map(explanation)).toEqual([`Requested by node c. ${outlook}`, outlook])
  })

  it('lists a file once although it has several names', () => {
    const both = { on_disk: ['known', 'known.Q4'], aliases: { 'known.Q4': 'known' } }
    const here = status([peer('a', { on_disk: ['known.Q4'] }), peer('b', both), peer('c', { on_disk: ['other'] })])
    const idle = of(here)
    expect(idle.map((one) => [one.name, one.onDisk, one.aliases])).toEqual([
      ['known', ['node a', 'node b'], ['known.Q4']],
      ['other', ['node c'], []],
    ])
    expect(explanation(idle[0]!)).toContain('run there: mesh-llm load known')

    // By whichever name it is served, or only wanted, that line has the file of all.
    for (const more of [{ serves: [serves('known.Q4')] }, { wants: ['known.Q4'] }]) {
      const live = of(status([peer('a', more), peer('b', both)]))
      expect(live.map((one) => [one.name, one.onDisk, one.aliases])).toEqual([['known.Q4', ['node b'], ['known']]])
    }

    // Two names by which callers can ask for it stay two.
    const two = of(
      status([peer('a', { serves: [serves('known')] }), peer('c', { wants: ['known.Q4'] }), peer('b', both)]),
    )
    expect(two.map((one) => [one.name, one.availability, one.onDisk, one.aliases])).toEqual([
      ['known', 'serving', ['node b'], []],
      ['known.Q4', 'requested', ['node b'], []],
    ])
  })

  it('ends if aliases form a circle', () => {
    const odd = { on_disk: ['x', 'y'], aliases: { x: 'y', y: 'x', z: 'z' } }
    expect(of(status([peer('a', odd)])).map((one) => one.name)).toEqual(['y'])
  })

  it('have vision if a host has or may have it', () => {
    const peers = [
      peer('a', { serves: ['m', 'n', 'o'].map((name) => ({ ...serves(name), input_modalities: ['text'] })) }),
      peer('b', { serves: [{ ...serves('n'), input_modalities: ['text', 'image'] }, serves('o'), serves('p')] }),
    ]
    const models = [model('h', 'loading', { input_modalities: ['text'] }), model('q', 'fetching')]
    const found = new Map(of(status(peers, { models })).map((one) => [one.name, one.vision]))
    expect([...'mnophq'].map((name) => found.get(name))).toEqual([false, true, null, null, false, null])
  })

  it('call tools if the first host that knows it says so', () => {
    const peers = [
      peer('a', { serves: [serves('m'), { ...serves('n'), calls_tools: false }] }),
      peer('b', { serves: ['m', 'n'].map((name) => ({ ...serves(name), calls_tools: true })) }),
      peer('c', { serves: [serves('o')] }),
    ]
    const found = new Map(of(status(peers)).map((one) => [one.name, one.callsTools]))
    expect([...'mno'].map((name) => found.get(name))).toEqual([true, false, null])
  })

  it('offers text generation models that are served or starting for the chat', () => {
    const peers = [
      peer('a', { serves: [serves('m'), { ...serves('e'), purpose: 'embed' }, { ...serves('u'), purpose: null }] }),
    ]
    expect(chatModels(of(status(peers, { models: [model('l', 'loading')] }))).map((one) => one.name)).toEqual([
      'm',
      'u',
      'l',
    ])
  })
})

describe('layout', () => {
  const many = (count: number, more: (place: number) => Partial<MeshNode> = () => ({})): MeshNode[] => [
    node('me', { here: true }),
    ...Array.from({ length: count - 1 }, (_, place) => node(`n${String(place).padStart(4, '0')}`, more(place))),
  ]

  it.each([1, 2, 3, 9, 10, 30, 49, 50, 300, 1000])('places %i nodes without overlap', (count) => {
    for (const size of [
      [375, 600],
      [600, 600],
      [1000, 700],
      [1900, 600],
    ].map(([width = 0, height = 0]) => ({ width, height }))) {
      const { positions, width, height } = layout(
        many(count, (place) => (place % 3 === 0 ? { role: 'host' } : {})),
        size,
      )
      expect(positions).toHaveLength(count)
      const outside = positions.filter(
        (one) => Math.abs(one.x) + one.radius > width / 2 || Math.abs(one.y) + one.radius > height / 2,
      )
      expect(outside).toEqual([])
      const pairs = positions.flatMap((one, place) =>
        positions
          .slice(place + 1)
          .filter((other) => Math.hypot(one.x - other.x, one.y - other.y) <= one.radius + other.radius)
          .map((other) => [one.node.id, other.node.id]),
      )
      expect(pairs).toEqual([])
    }
  })

  it('does not depend on the status or the order of nodes', () => {
    const before = layout(many(40), { width: 1000, height: 700 })
    const after = layout(
      [
        node('me', { here: true }),
        ...many(40, (place) => (place === 7 ? { status: 'suspect' } : {}))
          .slice(1)
          .reverse(),
      ],
      { width: 1000, height: 700 },
    )
    const places = (found: typeof before): unknown =>
      found.positions.map((position) => [position.node.id, position.x, position.y])
    expect(places(after)).toEqual(places(before))
  })
})
