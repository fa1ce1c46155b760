// Icons as strokes on a 24 x 24 grid. They are decorative; a text beside them has the same meaning.

import type { JSX } from 'preact'

const PATHS = {
  mesh: 'M12 12 5 6m7 6 7.5-5M12 12l-4 8m4-8 6 6M12 14.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5ZM5 7.5a1.5 1.5 0 1 0 0-3 1.5 1.5 0 0 0 0 3Zm14.5 1a1.5 1.5 0 1 0 0-3 1.5 1.5 0 0 0 0 3ZM8 21.5a1.5 1.5 0 1 0 0-3 1.5 1.5 0 0 0 0 3Zm10-2a1.5 1.5 0 1 0 0-3 1.5 1.5 0 0 0 0 3Z',
  nodes: 'M4 5h16v5H4zM4 14h16v5H4zM7.5 7.5h.01M7.5 16.5h.01M11 7.5h5M11 16.5h5',
  models: 'm12 3 8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9',
  requests: 'M4 6h4M11 6h9M4 12h9M16 12h4M4 18h6M13 18h7',
  chat: 'M4 5h16v11H9.5L4 20z',
  blackboard: 'M4 4h16v12H4zM8 8.5h8M8 12h5M8 20l2-4m6 4-2-4',
  reply: 'M9 7 4 12l5 5M4 12h10a6 6 0 0 1 6 6v1',
  join: 'M10 14a4 4 0 0 0 5.7.3l3-3a4 4 0 0 0-5.7-5.7l-1 1M14 10a4 4 0 0 0-5.7-.3l-3 3a4 4 0 0 0 5.7 5.7l1-1',
  copy: 'M9 9h11v11H9zM5 15H4V4h11v1',
  check: 'm5 12.5 4.5 4.5L19 7.5',
  stop: 'M7 7h10v10H7z',
  send: 'M12 19V5m-6 6 6-6 6 6',
  retry: 'M4 4v5h5M4.5 9A8 8 0 1 1 4 13',
  edit: 'M4 20h4L19 9l-4-4L4 16zM13.5 6.5l4 4',
  trash: 'M4 7h16M9 7V4h6v3M6.5 7l1 13h9l1-13M10.5 11v5M13.5 11v5',
  plus: 'M12 5v14M5 12h14',
  image: 'M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9.5h.01',
  close: 'm6 6 12 12M18 6 6 18',
  menu: 'M4 7h16M4 12h16M4 17h16',
  sun: 'M12 16a4 4 0 1 0 0-8 4 4 0 0 0 0 8ZM12 2v2M12 20v2M4.9 4.9l1.4 1.4M17.7 17.7l1.4 1.4M2 12h2M20 12h2M4.9 19.1l1.4-1.4M17.7 6.3l1.4-1.4',
  moon: 'M20 14.5A8 8 0 0 1 9.5 4 8 8 0 1 0 20 14.5Z',
  auto: 'M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18ZM12 3v18M12 7h5.5M12 11h8.5M12 15h7.5M12 19h4',
  search: 'M11 18a7 7 0 1 0 0-14 7 7 0 0 0 0 14ZM20 20l-4-4',
  chevron: 'm9 6 6 6-6 6',
  back: 'm15 6-6 6 6 6',
  download: 'M12 4v11m-5-5 5 5 5-5M5 20h14',
  warning: 'M12 4 2.5 20h19zM12 10v4M12 17h.01',
  eye: 'M2 12s3.5-6 10-6 10 6 10 6-3.5 6-10 6S2 12 2 12Zm10 3a3 3 0 1 0 0-6 3 3 0 0 0 0 6Z',
  settings:
    'M4 7h9M17 7h3M4 17h3M11 17h9M15 9.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5ZM9 19.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5Z',
} as const

export type IconName = keyof typeof PATHS

export function Icon({ name, size = 18 }: { name: IconName; size?: number }): JSX.Element {
  return (
    <svg class="icon" viewBox="0 0 24 24" width={size} height={size} aria-hidden="true">
      <path d={PATHS[name]} />
    </svg>
  )
}
